"""The policy in a query: it chooses K, and with KDV the angle; policies of other backbones."""

import hashlib
import warnings
from dataclasses import replace

import pytest
from chats import QUESTION, chat, draw_image, image_part, one_line
from policies import write_policy

from avis.config import AvisConfig
from avis.inputs import prepare_inputs
from avis.pipeline import answer
from policy.policy_model import PolicyModel


def embeddings(bundled, messages: list[dict], **kdv):
    """What a policy is shown: the items' embeddings, and the last hidden state."""
    prefill = bundled[0].prefill(**prepare_inputs(bundled[1], messages, AvisConfig()), **kdv)
    return [visual.embeds for visual in prefill.visual_items], prefill.last_hidden_state


@pytest.mark.parametrize("default", ["visual", "question"])
def test_the_policy_chooses_k_and_the_angle(bundled, tmp_path, default):
    """Guards against: pruned embeddings or another prompt's hidden state shown to the policy, one image of several left
    out, K of the configuration, and another angle than the one that it was fitted under."""
    policy = PolicyModel(write_policy(tmp_path / "p.pt", (3, 5), (1e-9,), default))
    messages = chat(image_part(draw_image(280, 196)), image_part())
    config = AvisConfig(enable_kdv=True, num_rollouts=2, max_new_tokens=4)
    result = answer(*bundled, messages, config, policy=policy)
    expected = policy.predict(*embeddings(bundled, messages, enable_kdv=True, kdv_threshold=policy.tau))
    assert (result.p, result.bin, result.num_rollouts) == (expected.p, 1, 5) and len(result.rollouts) == 5
    assert result.policy_sha256 == hashlib.sha256((tmp_path / "p.pt").read_bytes()).hexdigest()
    threshold = replace(config, kdv_threshold=policy.tau)
    assert result.items == answer(*bundled, messages, threshold).items
    assert result.items != answer(*bundled, messages, config).items  # not the ratio of 0.75
    assert set(result.seconds) == {"vision", "prefill", "policy", "decode"}
    assert result.config == config
    for fixed in ({"kdv_ratio": 0.5}, {"kdv_threshold": 0.9}):
        own = answer(*bundled, messages, replace(config, **fixed), policy=policy)
        assert own.items == answer(*bundled, messages, replace(config, **fixed)).items
        assert own.num_rollouts == 5
    whole = answer(*bundled, messages, AvisConfig(max_new_tokens=4), policy=policy)
    assert [item.rho for item in whole.items] == [0.0, 0.0] and whole.num_rollouts == 5


def test_one_rollout_of_the_policy_is_greedy(bundled, tmp_path):
    """Guards against: K = 1 sampled once, at whatever temperature."""
    policy = PolicyModel(write_policy(tmp_path / "p.pt", (1,)))
    wild = AvisConfig(num_rollouts=7, temperature=50.0, max_new_tokens=10)
    greedy = answer(*bundled, chat(image_part()), AvisConfig(max_new_tokens=10))
    assert answer(*bundled, chat(image_part()), wild, policy=policy).text == greedy.text


def test_policies_of_other_backbones(bundled, tmp_path):
    """Guards against: a policy of another width that fails deep inside, one of other weights taken in silence, and a
    warning where it fits."""
    wide = PolicyModel(write_policy(tmp_path / "wide.pt", width=10))
    with pytest.raises(ValueError, match="width 10"):
        answer(*bundled, chat(image_part()), AvisConfig(max_new_tokens=1), policy=wide)
    other = PolicyModel(write_policy(tmp_path / "other.pt", fingerprint="a" * 64))
    with pytest.warns(UserWarning, match="other weights"):
        answer(*bundled, chat(image_part()), AvisConfig(max_new_tokens=1), policy=other)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        own = PolicyModel(write_policy(tmp_path / "own.pt"))
        answer(*bundled, chat(image_part()), AvisConfig(max_new_tokens=1), policy=own)
    with pytest.raises(ValueError, match="there are none") as error:
        answer(*bundled, [{"role": "user", "content": QUESTION}], AvisConfig(max_new_tokens=1), policy=own)
    one_line(error)

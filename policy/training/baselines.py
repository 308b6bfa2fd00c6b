"""Simple predictors of solvability, beside which the networks are measured."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from policy.training.collected import Line, mean_pass_rate, pass_rate


class TokenBaseline:
    """Logistic regression on the number of visual tokens (its logarithm) and their mean key diversity.

    Targets are pass rates, which scikit-learn's logistic regression does not take.

    Attributes:
        mean: of the two features, `(2,)`.
        scale: their standard deviations, `(2,)`.
        weights: of the standardised features and the constant, `(3,)`.
    """

    def __init__(self, lines: Sequence[Line]):
        """Fit the regression on lines."""
        features = self._features(lines)
        self.mean, self.scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        inputs, target = self._inputs(lines), np.array([pass_rate(line) for line in lines])

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            scores = inputs @ weights
            gradient = inputs.T @ (expit(scores) - target) / len(target) + 1e-4 * weights
            return np.mean(np.logaddexp(0, scores) - target * scores) + 5e-5 * weights @ weights, gradient

        self.weights: np.ndarray = minimize(loss, np.zeros(3), jac=True, method="L-BFGS-B").x

    @staticmethod
    def _features(lines: Sequence[Line]) -> np.ndarray:
        return np.array([[np.log(line["visual"]), line["diversity"]] for line in lines])

    def _inputs(self, lines: Sequence[Line]) -> np.ndarray:
        standard = (self._features(lines) - self.mean) / self.scale
        return np.concatenate([standard, np.ones((len(lines), 1))], axis=1)

    def predict(self, lines: Sequence[Line]) -> np.ndarray:
        """Return p of every line, `(n,)`."""
        return expit(self._inputs(lines) @ self.weights)


def predict_by_task(fitted: Sequence[Line], lines: Sequence[Line]) -> np.ndarray:
    """Return p of every line from its task's label alone.

    Args:
        fitted: lines whose mean pass rates are used: the task's, or that of all when the task is new.
        lines: to predict.

    Returns:
        `(n,)`.
    """
    overall = mean_pass_rate(fitted)
    means = {}
    for task in {line["task"] for line in fitted}:
        means[task] = mean_pass_rate([line for line in fitted if line["task"] == task])
    return np.array([means.get(line["task"], overall) for line in lines])

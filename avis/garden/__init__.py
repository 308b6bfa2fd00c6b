"""The garden: a small procedural world of wooden animals, with questions, answers and reasoning traces.

Example::

    from avis.garden.render import render
    from avis.garden.tasks import item_for
    item = item_for("dev", 7)
    render(item.scenes[0]).save("scene.png")
    print(item.question, item.answer)
"""

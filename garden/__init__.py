"""The garden: a small procedural world of wooden animals, with questions, answers and reasoning traces.

Example::

    from garden.scenes import scene_for
    from garden.render import render
    render(scene_for("dev", 0)).save("scene.png")
"""

import random

from bridgegarden.report.labels import Box, place, shortened, width

FRAME = Box(0, 0, 400, 300)


def test_names_of_points_far_apart_stand_right_beside_them():
    labels = place(["one", "two"], [(100, 100), (300, 200)], [], FRAME)
    assert not any(label.far for label in labels)
    assert labels[0].box.left == 110


def test_names_of_crowded_points_do_not_cover_each_other():
    draw = random.Random(0)
    for _ in range(50):
        points = [(200 + draw.uniform(-25, 25), 150 + draw.uniform(-25, 25)) for _ in range(7)]
        names = ["hard (argmax)", "soft", "static", "confidence", "entropy", "curriculum", "risk-guided"]
        boxes = [label.box for label in place(names, points, [], FRAME)]
        shared = sum(one.overlap(other) for i, one in enumerate(boxes) for other in boxes[:i])
        assert shared < 0.02 * sum(16 * width(name) for name in names)


def test_a_name_at_the_edge_turns_inwards():
    for x, y in ((395, 150), (5, 150), (200, 3), (200, 297), (399, 1)):
        (label,) = place(["risk-guided"], [(x, y)], [], FRAME)
        assert label.box.outside(FRAME) == 0


def test_a_name_that_is_too_long_loses_its_end():
    assert shortened("entropy", 200) == "entropy"
    short = shortened("a name that goes on and on", 100)
    assert short.endswith("…")
    assert short.startswith("a name")
    assert width(short) <= 100

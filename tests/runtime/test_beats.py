import queue

from raypeft.engines.progress import got_on
from raypeft.runtime.beats import Beat, Heart


def test_a_heart_says_how_far_an_attempt_is_and_nothing_between_two() -> None:
    said: queue.SimpleQueue[Beat] = queue.SimpleQueue()
    heart = Heart(said.put, every_seconds=0.001)
    try:
        got_on()
        heart.begin("s1", "u1", 2)
        assert said.get(timeout=10) == Beat("s1", "u1", 2, 0)
        got_on()
        while (beat := said.get(timeout=10)).progress == 0:
            assert beat.unit_id == "u1"
        assert beat == Beat("s1", "u1", 2, 1)
        heart.end()
        heart.begin("s1", "u2", 1)
        while (beat := said.get(timeout=10)).unit_id != "u2":
            assert beat.progress == 1
        assert beat == Beat("s1", "u2", 1, 0)
    finally:
        heart.stop()


def test_a_beat_that_nobody_hears_does_not_stop_the_heart() -> None:
    said: queue.SimpleQueue[Beat] = queue.SimpleQueue()

    def say(beat: Beat) -> None:
        said.put(beat)
        raise ValueError("nobody listens yet")

    heart = Heart(say, every_seconds=0.001)
    try:
        heart.begin("s1", "u1", 1)
        assert said.get(timeout=10) == said.get(timeout=10) == Beat("s1", "u1", 1, 0)
    finally:
        heart.stop()

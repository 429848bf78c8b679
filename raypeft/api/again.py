"""The baselines of a sweep that are answered twice, for the noise floor.

Decides which they are and what they are called. What two answers of one baseline say is decided by
`raypeft.core.noise`.
"""

from dataclasses import replace

from raypeft.api.assigning import Assigned
from raypeft.core.engine_choice import AGAIN_SUFFIX
from raypeft.core.records import Failure, Subject

Found = list[tuple[Subject, Failure | None]]


def answered_again(found: Found, assigned: Assigned) -> tuple[Found, Assigned]:
    """Return a base's subjects and engines with a second answering of each baseline.

    A base that is enlarged for some adapters is answered once: those adapters have no noise floor.

    Args:
        found: The base's subjects, each with why it has failed.
        assigned: Their engines.
    """
    done: Found = []
    routes = dict(assigned.routes)
    for subject, failure in found:
        done.append((subject, failure))
        if subject.adapter is None and subject.vocab_size is None and subject.id in routes:
            again = replace(subject, id=f"{subject.id}{AGAIN_SUFFIX}", again=True)
            done.append((again, failure))
            routes[again.id] = routes[subject.id]
    return done, replace(assigned, routes=routes)

"""What holds for all tests: properties are judged by what they find, never by how long they took.

Where ``CI`` is set, each property draws the same examples every time: what CI refuses is the change, not the draw.
Everywhere else they are drawn anew.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tierline",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tierline")

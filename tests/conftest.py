"""What holds for all tests: properties are judged by what they find, never by how long they took."""

from hypothesis import settings

settings.register_profile("tierline", deadline=None)
settings.load_profile("tierline")

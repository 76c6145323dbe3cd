"""``tierline bench run``: load on any endpoint of the OpenAI API, and what it answers measured."""

"""Models that turn pictures into features, one a file; ``evaluation.features`` loads them by name.

Each says who it is by three things, and features are compared only if all three agree: ``name``,
``digest`` (sha256 of what decides a feature) and ``preprocessing`` (what was done to the pictures
before: how a picture is made smaller moves a Fréchet distance as much as the model that drew it).
Nothing here needs torchvision.
"""

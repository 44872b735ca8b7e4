"""People's blind look at pictures of two or more releases, side by side.

``session`` says what a reviewer is shown, ``result`` what the votes say; both are pure, with
``statistics``, ``agreement`` and ``preferences`` below them. ``pictures`` and ``desk`` act.
"""

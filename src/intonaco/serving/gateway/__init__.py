"""Takes the users' requests, splits them over releases, shields them, writes records. No torch."""

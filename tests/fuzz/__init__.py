"""Bad requests for a server of the API, by a seed: it has to stay alive and correct, and its memory level."""

"""How good the samples are, against clean data that training never saw."""

"""Sources of word pairs: how well they align words, and what counting co-occurrences takes as corpora grow."""

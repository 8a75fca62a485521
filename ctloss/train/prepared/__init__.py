"""Prepared corpora: parallel text read, split and tokenized once, in a folder that any number of runs train on."""

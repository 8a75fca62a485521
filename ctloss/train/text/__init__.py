"""What a run reads: corpora, their tokenizer, and where word pairs come from."""

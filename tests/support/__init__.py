"""What several tests share: truths, bounds, random cases, tiny models and corpora."""

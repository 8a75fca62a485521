"""What several tests share: random cases, exact answers, error bounds, tiny models and corpora."""

"""What a student loses on its own texts, where, and which objective that speaks for."""

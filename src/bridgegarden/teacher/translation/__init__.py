"""What a teacher says in its own tokens, said in the tokens of a student of another family."""

"""A student that answers in the browser, each of its tokens beside what its teacher would have said."""

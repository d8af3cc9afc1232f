"""Physical attacks: something printed, worn or built, that must fool a model however a camera sees it."""

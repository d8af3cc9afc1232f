"""Steps that several attacks share; each has a name here and one implementation."""

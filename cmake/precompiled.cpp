// Nothing: headers cannot be precompiled without a program that uses them.

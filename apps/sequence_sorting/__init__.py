"""Sorts a list of numbers by graph of thoughts: split, sort each half several times, keep the best, merge, improve."""

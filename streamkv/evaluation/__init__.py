"""Measures answers: suites of videos with questions, scoring rules, runs of a method over them, reports."""

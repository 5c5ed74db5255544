"""The method, one step a file: scouting, personalization, selection, recomputation, fusion."""

"""MIDI files to clean, quantised songs: read, repair, clean."""

"""MIDI files to clean, quantised songs: repair, channels, the grid."""

"""Pictures in memory: sizes, pixels, and their encoding as files. Pillow and numpy only."""

"""Models side by side: size, speed, quality and error of several model folders, as tables, JSON and one page."""

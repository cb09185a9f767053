"""Reports for a reader: one HTML file each, with its charts, styles and script inside."""

"""Files that outlive a run: its directory, weights, exports, drawings and the report page."""

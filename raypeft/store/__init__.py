"""Store: Arrow tables and the content-addressed Parquet store."""

"""Speed, measured against references in the same run; ``make bench`` runs it.

Every figure is a ratio against what physics or the bare library allows, measured on the same data in alternation with
it, because machines differ and are noisy. A row is the median of the rounds; CPU per operation stands beside it.

    data       which vectors, filters aside
    measure    rounds, medians, rows
    search     §1: one embedded search against hnswlib and numpy
    batches    many queries in one call: on all cores, by one filter; float16 against float32
    writes     §2: durable writes against write + fsync, indexing against hnswlib
    cluster    §3: two shards on Ray against bare Ray calls
    filters    §4: filtered searches against unfiltered ones, at several selectivities
    plans      which plan is cheapest for a filter, and whether the planner picks it
    counts     §4b: exact counts by every kind of filter at 100,000 records
    texts      searches by words, and by words and vector, against SQLite's FTS5 and bm25s
    groups     searches that group by a field, against searches that do not
    recall     whether target_recall is met on data of different difficulty, and what the estimate says
    growth     §5: cost, memory, disk, first answer at 10,000 and 100,000 rows (VECRAFT_BENCH_ROWS for others)
    ingest     §5e: searches beside ingest against searches in peace
    sweep      recall against rate at many depths, beside bare indexes and other databases that are installed
    peers      those databases; ``pip install -e '.[peers]'`` into an environment of its own brings them
    plots      pictures of all that
"""

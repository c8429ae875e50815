-- clean -> index -> sequences as one hand-written DuckDB query; `etl_duckdb.py` fills in what stands in braces.
-- Same rules as etl/tables/poi_index.py, etl/columns/action_rules.py and etl/tables/clean_actions.py, in their order where order counts.
WITH
poi_rows AS (
    SELECT *, trimmed(poi_id) AS clean_poi_id
    FROM read_parquet('{folder}/raw_pois.parquet')
),
good_pois AS (
    SELECT * REPLACE (clean_poi_id AS poi_id)
    FROM poi_rows
    WHERE NOT is_nothing(clean_poi_id) AND NOT is_broken(clean_poi_id)
        AND greatest(coalesce(length(poi_id), 0), coalesce(length(name), 0), coalesce(length(category), 0),
            coalesce(length(category_path), 0)) <= {max_text_length}
        AND poi_lon IS NOT NULL AND poi_lat IS NOT NULL
        AND is_on_earth(poi_lon, poi_lat) AND NOT (poi_lon = 0 AND poi_lat = 0)
    QUALIFY row_number() OVER (
        PARTITION BY clean_poi_id
        ORDER BY is_closed DESC NULLS LAST, poi_rows.poi_id, name NULLS LAST, address NULLS LAST,
            category NULLS LAST, category_path NULLS LAST, poi_lon, poi_lat, description NULLS LAST,
            first_seen_date NULLS LAST, is_simulated
    ) = 1
),
leaves AS (
    SELECT coalesce(nullif(trim(category), ''), nullif(trim(split(category_path, ' > ')[-1]), '')) AS leaf, *
    FROM good_pois
),
known_categories AS (
    SELECT leaf, row_number() OVER (ORDER BY leaf) AS category_id, is_interest
    FROM (SELECT DISTINCT leaf FROM leaves WHERE leaf IS NOT NULL) JOIN taxonomy USING (leaf)
),
placed AS (
    SELECT *, (poi_lat + 90.0) / (180.0 / {rows}) AS up, least(floor(up), {rows} - 1)::INTEGER AS cell_y,
        num_columns(cell_y) AS columns,
        CASE WHEN poi_lon >= 180.0 THEN 0.0 ELSE (poi_lon + 180.0) / 360.0 * columns END AS along,
        least(floor(along), columns - 1)::INTEGER AS cell_x,
        hilbert(along - cell_x, up - cell_y, 8) AS hilbert_no,
        least(coalesce(first_seen_date, DATE '{day}'), DATE '{day}') AS slot_from
    FROM leaves
),
blocks AS (
    SELECT cell_x, cell_y, row_number() OVER (
        ORDER BY min(slot_from),
            hilbert(
                ((cell_x + 0.5) * 360.0 / num_columns(cell_y) - 180.0 + 180) / 360,
                ((cell_y + 0.5) * (180.0 / {rows}) - 90.0 + 90) / 180, 14
            ), cell_y, cell_x
    )::INTEGER - 1 AS block_id
    FROM placed
    GROUP BY cell_x, cell_y
),
slots AS (
    SELECT poi_id AS clean_poi_id, block_id, poi_lon AS slot_lon, poi_lat AS slot_lat,
        (row_number() OVER (PARTITION BY block_id ORDER BY slot_from, hilbert_no, poi_id))::INTEGER - 1 AS inner_id,
        coalesce(category_id, 0)::INTEGER AS category_id, coalesce(is_interest, true) AS is_interest
    FROM placed JOIN blocks USING (cell_x, cell_y) LEFT JOIN known_categories USING (leaf)
),
action_rows AS (
    SELECT trimmed(action_id) AS clean_action_id, trimmed(user_id) AS clean_user_id, trimmed(poi_id) AS clean_poi_id,
        lower(trimmed(action_type)) AS clean_action_type, *
    FROM read_parquet('{folder}/raw_actions.parquet')
),
good_actions AS (
    SELECT *,
        is_on_earth(user_lon, user_lat) AND NOT (user_lon = 0 AND user_lat = 0) AS is_place_usable,
        CASE WHEN is_place_usable THEN user_lon END AS clean_lon,
        CASE WHEN is_place_usable THEN user_lat END AS clean_lat,
        CASE WHEN tz_offset_min BETWEEN -840 AND 840 THEN tz_offset_min
            ELSE (floor(coalesce(clean_lon, slot_lon) / 15 + 0.5) * 60)::INTEGER END AS tz,
        list_position({action_types}, clean_action_type)::INTEGER - 1 AS action_type_id,
        hash(action_id, user_id, poi_id, action_type, action_ts_ms, tz_offset_min, user_lon, user_lat, poi_lon,
            poi_lat, category, corrupt_record, is_simulated) AS content
    FROM action_rows JOIN slots USING (clean_poi_id)
    WHERE corrupt_record IS NULL
        AND NOT is_nothing(clean_user_id) AND NOT is_nothing(clean_poi_id)
        AND greatest(coalesce(length(action_id), 0), coalesce(length(user_id), 0), coalesce(length(poi_id), 0),
            coalesce(length(action_type), 0)) <= {max_text_length}
        AND NOT is_broken(concat_ws('', clean_action_id, clean_user_id, clean_poi_id))
        AND clean_action_type IN {action_types}
        AND action_ts_ms BETWEEN {earliest_ms} AND {latest_ms}
        AND NOT coalesce(NOT isfinite(poi_lon) OR NOT isfinite(poi_lat), false)
        AND NOT coalesce(is_swapped(poi_lon, poi_lat)
            OR km(poi_lon, poi_lat, slot_lon, slot_lat) > {max_poi_shift_km}
            AND km(poi_lat, poi_lon, slot_lon, slot_lat) <= {max_poi_shift_km}, false)
        AND (poi_lon IS NULL OR poi_lat IS NULL OR is_on_earth(poi_lon, poi_lat))
        AND NOT coalesce(poi_lon = 0 AND poi_lat = 0, false)
        AND NOT coalesce(is_swapped(user_lon, user_lat)
            OR km(user_lon, user_lat, slot_lon, slot_lat) > 1000
            AND km(user_lat, user_lon, slot_lon, slot_lat) <= 100, false)
),
once AS (
    FROM good_actions
    QUALIFY row_number() OVER (PARTITION BY clean_action_id ORDER BY action_ts_ms, content) = 1
),
repeats AS (
    SELECT *, coalesce(
        action_ts_ms = lag(action_ts_ms) OVER of_user AND clean_poi_id = lag(clean_poi_id) OVER of_user
            AND action_type_id = lag(action_type_id) OVER of_user, false) AS is_repeated
    FROM once
    WINDOW of_user AS (
        PARTITION BY clean_user_id ORDER BY action_ts_ms, clean_poi_id, action_type_id, clean_action_id
    )
),
accepted AS (
    FROM repeats
    WHERE NOT is_repeated
    QUALIFY row_number() OVER (
        PARTITION BY clean_user_id, action_ts_ms // 86400000
        ORDER BY action_ts_ms, clean_poi_id, action_type_id, clean_action_id
    ) <= {max_actions_per_day}
),
last_actions AS (
    SELECT *,
        coalesce(clean_lon, lead(slot_lon) OVER newest_first, 'NaN'::DOUBLE) AS from_lon,
        coalesce(clean_lat, lead(slot_lat) OVER newest_first, 'NaN'::DOUBLE) AS from_lat,
        count(*) OVER (PARTITION BY clean_user_id) AS num_actions
    FROM accepted
    WINDOW newest_first AS (PARTITION BY clean_user_id ORDER BY action_ts_ms DESC, clean_action_id DESC)
    QUALIFY row_number() OVER newest_first <= {max_actions}
),
tastes AS (
    SELECT clean_user_id, coalesce(exp(ln(nullif(sum(visits), 0)) - sum(CASE WHEN visits > 0
        THEN visits * ln(visits) ELSE 0 END) / nullif(sum(visits), 0)), 0.0) AS richness
    FROM (
        SELECT clean_user_id, clean_poi_id, count(*) FILTER (is_interest) AS visits
        FROM last_actions GROUP BY ALL
    )
    GROUP BY ALL
),
histories AS (
    SELECT clean_user_id, any_value(num_actions) AS num_actions, bool_or(is_simulated) AS is_simulated,
        list({{
            'ts': action_ts_ms, 'id': clean_action_id, 'poi': clean_poi_id, 'tz': tz, 'type': action_type_id,
            'block': block_id, 'inner': inner_id, 'lon': slot_lon, 'lat': slot_lat, 'category': category_id,
            'interest': is_interest, 'from_lon': from_lon, 'from_lat': from_lat
        }} ORDER BY action_ts_ms, clean_action_id) AS visits
    FROM last_actions
    GROUP BY clean_user_id
),
homes AS MATERIALIZED (  -- else the medians would be computed anew for every visit that they are compared with
    SELECT *, median_of(list_transform(visits, lambda v: v.lon)) AS near_lon,
        median_of(list_transform(visits, lambda v: v.lat)) AS near_lat
    FROM histories
),
travels AS (
    SELECT *, list_transform(visits, lambda v: km(v.lon, v.lat, near_lon, near_lat) > {travel_km}) AS is_travels,
        len(list_filter(is_travels, lambda is_travel: is_travel)) / len(is_travels) AS travel_share
    FROM homes
)
SELECT DATE '{day}' AS day, clean_user_id AS user_id, 1 AS index_version, num_actions,
    len(visits)::INTEGER AS seq_len, richness,
    CASE WHEN travel_share < {mixed_share} THEN 'local' WHEN travel_share > 1 - {mixed_share} THEN 'travel'
        ELSE 'mixed' END AS pattern,
    []::INTEGER[] AS profile_ids,
    list_transform(visits, lambda v: v.poi) AS poi_ids,
    list_transform(visits, lambda v: v.ts) AS timestamps_ms,
    list_transform(visits, lambda v: v.tz) AS tz_offsets_min,
    list_transform(visits, lambda v: v.from_lon::FLOAT) AS user_lons,
    list_transform(visits, lambda v: v.from_lat::FLOAT) AS user_lats,
    list_transform(visits, lambda v: v.type) AS action_type_ids,
    list_transform(visits, lambda v: v.block) AS block_ids,
    list_transform(visits, lambda v: v.inner) AS inner_ids,
    list_transform(visits, lambda v: v.lon::FLOAT) AS poi_lons,
    list_transform(visits, lambda v: v.lat::FLOAT) AS poi_lats,
    list_transform(visits, lambda v: v.category) AS category_ids,
    list_transform(visits, lambda v: v.interest) AS is_interests,
    is_travels, is_simulated
FROM travels JOIN tastes USING (clean_user_id)

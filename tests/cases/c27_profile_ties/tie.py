from datetime import date

from conf.settings import load_settings
from etl.spark.session import local_frame, open_session
from etl.tables.profiles import build_profile_ids, profile_states

spark = open_session(load_settings([], ["spark.quick_start=true"]), "tie")
rows = [(date(2026, 2, 22), "u1", "age_group", "18-24"), (date(2026, 2, 22), "u1", "age_group", "25-34")]
for order in (rows, rows[::-1]):
    frame = local_frame(spark, order, "day date, user_id string, attribute string, value string")
    print("serving", build_profile_ids(frame).collect(), "training", profile_states(frame).collect())

"""Claims about scoring with Spark: the artifact is a function on rows, without a change."""

import importlib.util
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="no pyspark"),
    pytest.mark.skipif(shutil.which("java") is None, reason="no Java"),
]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    from pyspark.sql import SparkSession

    settings = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
        yield session
        session.stop()


def test_spark_scores_raw_rows_as_mlflow_does(session, trained, files):
    import mlflow
    from pyspark.sql.functions import struct

    trained.use()
    rows = pd.read_csv(files / "new.csv").head(50)
    score = mlflow.pyfunc.spark_udf(session, trained.uri, result_type="double", env_manager="local")
    scored = session.createDataFrame(rows).withColumn("amount", score(struct(*rows))).toPandas()
    expected = trained.predict(trained.uri, rows)
    np.testing.assert_allclose(scored["amount"], np.ravel(expected), rtol=1e-5)

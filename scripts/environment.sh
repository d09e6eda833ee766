# Sourced by the other commands: the project's root is the working directory and its environment stands first.
# Another Spark or Python of the caller's shell must not answer in its place.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME SPARK_HOME SPARK_CONF_DIR PYSPARK_PYTHON PYSPARK_DRIVER_PYTHON PYSPARK_SUBMIT_ARGS
export VIRTUAL_ENV="$PWD/.venv"
export PATH="$VIRTUAL_ENV/bin:$PATH"
# Spark's classes out of an archive that scripts/setup makes, see scripts/share_classes.py.
if [[ ${SPARK_SUBMIT_OPTS:-} != *"$VIRTUAL_ENV/spark.jsa"* ]]; then
    # Behind what is there: of two archives Java takes the last, and that of another environment is of no use here.
    SPARK_SUBMIT_OPTS="${SPARK_SUBMIT_OPTS:-} \"-XX:SharedArchiveFile=$VIRTUAL_ENV/spark.jsa\" -Xlog:cds=off -Xlog:cds+dynamic=off"
    export SPARK_SUBMIT_OPTS
fi

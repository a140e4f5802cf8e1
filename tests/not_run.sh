# Sourced: not_run WHAT WHY says that something is not run, and why. With BITLINEAR_REQUIRE_TOOLS=1 it is a failure.
# BITLINEAR_NOT_RUN names a file for a list of all that (.ci/run ends with it; tests/native/mod.rs writes there too).
not_run() {
  echo "$1: NOT RUN: $2"
  if [ -n "${BITLINEAR_NOT_RUN:-}" ]; then echo "$1: $2" >>"$BITLINEAR_NOT_RUN"; fi
  [ "${BITLINEAR_REQUIRE_TOOLS:-}" != 1 ] || exit 1
}

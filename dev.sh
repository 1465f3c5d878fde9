cd /work/trees/pool; export PATH=/work/trees/pool/.venv/bin:/usr/bin:/bin VIRTUAL_ENV=/work/trees/pool/.venv
[ -d build ] || meson setup build --prefix=$PWD/.venv -Dpython.install_env=venv -Dlibdir=lib -Dtests=true >/dev/null
meson install -C build 2>&1 | grep -E "error|warning|FAILED" | head -20

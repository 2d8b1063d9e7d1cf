# To be read by scripts that build for CUDA: where the compiler is. Without one, CUDA 13.0's is installed from PyPI (newer ones
# are refused by cudarc), with what programs are linked to.
if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    cuda_venv=${XDG_CACHE_HOME:-$HOME/.cache}/apa/cuda
    cuda_toolkit() { compgen -G "$cuda_venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc"; }
    # What PyPI's packages lack for linking: the folder that nvcc looks into, names without a version, the driver's library
    # (without code: it belongs to a machine with a GPU), and static libraries that llama.cpp's build names, whose functions
    # are in the shared ones.
    cuda_link_names() {
        local lib=${1%/bin/nvcc}/lib name
        ln -sfn lib "${lib}64"
        for name in cublas cublasLt cudart curand nvrtc; do
            (cd "$lib" && ln -sf "$(compgen -G "lib$name.so.*" | head -n1)" "lib$name.so")
        done
        for name in cublas_static cublasLt_static culibos; do ar rcs "$lib/lib$name.a"; done
        grep -oE '\bcu[A-Z][A-Za-z0-9_]+' "$lib/../include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' |
            gcc -x c -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$lib/libcuda.so" -
    }
    if ! cuda_toolkit >/dev/null || [ ! -e "$cuda_venv/complete" ]; then
        echo "installing the CUDA 13.0 compiler to $cuda_venv" >&2
        python3 -m venv "$cuda_venv"
        "$cuda_venv/bin/pip" install --quiet "cuda-toolkit[nvcc,cccl,crt,nvvm,cudart,curand,cublas,nvrtc]==13.0.*"
        cuda_link_names "$(cuda_toolkit | head -n1)"
        touch "$cuda_venv/complete"
    fi
    CUDA_HOME=$(cuda_toolkit | head -n1)
    export CUDA_HOME=${CUDA_HOME%/bin/nvcc}
fi
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export CUDA_PATH=$CUDA_HOME CUDA_ROOT=$CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"
# There may be no GPU to ask.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}

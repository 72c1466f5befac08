# Finds nvcc and sets MORPHSERVE_CUDA_FOUND and MORPHSERVE_CUDA_ROOT. The toolkit may be the one
# that deploy/install_packages.sh --cuda puts below .cache, the one on the PATH, or that of
# /usr/local/cuda.
set(MORPHSERVE_CUDA_FOUND OFF)
if(MORPHSERVE_CUDA)
  find_program(MORPHSERVE_NVCC nvcc
               HINTS ${CMAKE_SOURCE_DIR}/.cache/cuda/nvidia/cu13/bin ENV MORPHSERVE_CUDA_DIR
               PATHS /usr/local/cuda/bin PATH_SUFFIXES bin)
  if(MORPHSERVE_NVCC)
    # Only Hopper's own target: wgmma, TMA and setmaxnreg exist in no other (kernels/README.md).
    set(CMAKE_CUDA_ARCHITECTURES OFF)
    set(CMAKE_CUDA_COMPILER ${MORPHSERVE_NVCC})
    # The static runtime is linked by its path below: a wheel's layout is not what CMake expects.
    set(CMAKE_CUDA_RUNTIME_LIBRARY None)
    enable_language(CUDA)
    # CMake 3.25 knows nvcc 13 but not its flag for C++20.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA_STANDARD 20)
    # The gate reads what ptxas says of every kernel; a cache says it again on a hit.
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CURRENT_LIST_DIR}/nvcc_gate.sh)
    if(CCACHE)
      list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
    endif()
    get_filename_component(MORPHSERVE_CUDA_ROOT ${MORPHSERVE_NVCC} REALPATH)
    get_filename_component(MORPHSERVE_CUDA_ROOT ${MORPHSERVE_CUDA_ROOT} DIRECTORY)
    get_filename_component(MORPHSERVE_CUDA_ROOT ${MORPHSERVE_CUDA_ROOT} DIRECTORY)
    find_library(MORPHSERVE_CUDART cudart_static HINTS ${MORPHSERVE_CUDA_ROOT}/lib
                 ${MORPHSERVE_CUDA_ROOT}/lib64 NO_DEFAULT_PATH REQUIRED)
    set(MORPHSERVE_CUDA_FOUND ON)
    message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION} at ${MORPHSERVE_NVCC}")
  elseif(NOT MORPHSERVE_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "MORPHSERVE_CUDA is ${MORPHSERVE_CUDA} and nvcc was not found: run "
                        "deploy/install_packages.sh --cuda, or name a toolkit in MORPHSERVE_CUDA_DIR")
  else()
    message(STATUS "CUDA backend: left out, nvcc was not found")
  endif()
endif()

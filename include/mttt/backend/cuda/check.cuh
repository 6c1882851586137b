// Checks of every CUDA and cuBLAS call: an Error that says what was found, what was expected, what to do.
//
// Shapes:  none.   Units: none.
// Errors:  Error: no GPU, no driver or one that is too old, a program without code for this GPU, a fault of a
//          kernel, a wait while a graph is being recorded, and whatever else CUDA or cuBLAS report.
// Not supported: recovery from the fault of a kernel (an illegal address, say), which spoils the process's
//          CUDA context: the program must end.
// Source:  CUDA Runtime API, cudaError_t; cuBLAS, cublasStatus_t.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <string>

#include "mttt/core/error.hpp"

namespace mttt::detail {

/// 13020 is "13.2".
inline std::string cuda_version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

/// "NVIDIA H200 (compute capability 9.0)" of the current device.
inline std::string device_name() {
  int device = 0;
  cudaDeviceProp properties{};
  if (cudaGetDevice(&device) != cudaSuccess || cudaGetDeviceProperties(&properties, device) != cudaSuccess)
    return "an unknown GPU";
  return std::string(properties.name) + " (compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ")";
}

/// What the driver supports, 0 without one, and what this program was linked with.
struct CudaVersions {
  int driver = 0, runtime = 0;
  static CudaVersions found() {
    CudaVersions versions;
    cudaDriverGetVersion(&versions.driver);
    cudaRuntimeGetVersion(&versions.runtime);
    return versions;
  }
};

/// Errors after which no call of this process reaches the GPU any more.
inline bool is_fault(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

/// Errors of a stream that is being recorded.
inline bool is_of_recording(cudaError_t error) {
  return error >= cudaErrorStreamCaptureUnsupported && error <= cudaErrorCapturedEvent;
}

[[noreturn]] inline void cuda_fail(cudaError_t error, std::string_view what,
                                   CudaVersions versions = CudaVersions::found()) {
  cudaGetLastError();  // so that a caller who catches the Error can go on
  const std::string subject = "CUDA: " + std::string(what);
  const std::string found = std::string(cudaGetErrorName(error)) + " (" + cudaGetErrorString(error) + ")";
  if (error == cudaErrorInsufficientDriver || error == cudaErrorUnsupportedPtxVersion) {
    const bool none = versions.driver == 0;
    fail(subject, none ? "no NVIDIA driver" : "an NVIDIA driver for CUDA " + cuda_version(versions.driver),
         "a driver for CUDA " + cuda_version(versions.runtime) + " or later",
         none ? "install an NVIDIA driver, or use the CPU backend"
              : "install a newer driver, or use the CPU backend");
  }
  if (error == cudaErrorNoDevice) {
    fail(subject, "no GPU", "an NVIDIA GPU",
         "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU backend");
  }
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    fail(subject, device_name(), "a GPU that this program was compiled for",
         "compile again with this GPU's number in CMAKE_CUDA_ARCHITECTURES");
  }
  if (error == cudaErrorDevicesUnavailable) {
    fail(subject, "a GPU that another program holds", "one that is free",
         "end that program (nvidia-smi lists it), or choose another GPU");
  }
  if (error == cudaErrorMemoryAllocation) {
    fail(subject, "no memory left on " + device_name(), "free memory on the GPU",
         "end other programs on this GPU, or lower batch or steps");
  }
  if (is_of_recording(error)) {
    fail(subject, "a graph that is being recorded", "work that does not wait for the GPU",
         "move to_host, to_device and synchronize out of what capture() runs");
  }
  if (is_fault(error)) {
    fail(subject, found, "kernels without a fault",
         "end the program, whose GPU context is lost; compute-sanitizer finds the kernel");
  }
  fail(subject, found, "success", "look the error up in the CUDA Runtime API's list of cudaError_t");
}

inline void check(cudaError_t error, std::string_view what) {
  if (error != cudaSuccess) cuda_fail(error, what);
}

inline void check(cublasStatus_t status, std::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string subject = "cuBLAS: " + std::string(what);
  const std::string found =
      std::string(cublasGetStatusName(status)) + " (" + cublasGetStatusString(status) + ")";
  if (status == CUBLAS_STATUS_ALLOC_FAILED || status == CUBLAS_STATUS_NOT_INITIALIZED) {
    fail(subject, found, "free memory on the GPU for cuBLAS",
         "end other programs on this GPU, or lower batch or steps");
  }
  if (status == CUBLAS_STATUS_ARCH_MISMATCH)
    fail(subject, device_name(), "a GPU that this cuBLAS supports", "install another version of cuBLAS");
  fail(subject, found, "success", "compare the extents of the planes");
}

template <int = 0>
__global__ void probe_kernel() {}

/// Makes the GPU current, or says why it cannot be used.
inline int open_device(int device) {
  int count = 0;
  check(cudaGetDeviceCount(&count), "opening a GPU");
  if (device < 0 || device >= count) {
    fail("CUDA: opening GPU " + std::to_string(device),
         std::to_string(count) + (count == 1 ? " GPU" : " GPUs"),
         count == 1 ? "number 0" : "a number from 0 to " + std::to_string(count - 1),
         "choose one that nvidia-smi lists");
  }
  check(cudaSetDevice(device), "opening a GPU");
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, probe_kernel<>), "opening a GPU");
  return device;
}

inline int device_attribute(int device, cudaDeviceAttr attribute) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device), "asking a GPU for its limits");
  return value;
}

}  // namespace mttt::detail

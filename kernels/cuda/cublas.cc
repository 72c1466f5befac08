#include "kernels/cuda/cublas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/error.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr char kLibrary[] = "libcublasLt.so.13";

// cublasLtMatmul answers INVALID_VALUE to a workspace that is not aligned so.
constexpr uintptr_t kWorkspaceAlignment = 256;
constexpr int64_t kUsableBytes = kCublasWorkspaceBytes - int64_t{kWorkspaceAlignment};

void* UsableWorkspace(std::byte* workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  return workspace + (kWorkspaceAlignment - address % kWorkspaceAlignment) % kWorkspaceAlignment;
}

// The functions that are used, by their own declarations.
struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
};

template <class F>
bool Find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  return *function != nullptr;
}

absl::StatusOr<Library> Load() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s is needed for long inputs and was not found (%s): install cuBLAS 13 or put its folder "
        "on LD_LIBRARY_PATH",
        kLibrary, dlerror()));
  }
  Library l;
  const bool whole = Find(library, "cublasLtCreate", &l.create) &&
                     Find(library, "cublasLtMatmul", &l.matmul) &&
                     Find(library, "cublasLtMatmulDescCreate", &l.desc_create) &&
                     Find(library, "cublasLtMatmulDescDestroy", &l.desc_destroy) &&
                     Find(library, "cublasLtMatmulDescSetAttribute", &l.desc_set) &&
                     Find(library, "cublasLtMatrixLayoutCreate", &l.layout_create) &&
                     Find(library, "cublasLtMatrixLayoutDestroy", &l.layout_destroy) &&
                     Find(library, "cublasLtMatmulPreferenceCreate", &l.preference_create) &&
                     Find(library, "cublasLtMatmulPreferenceDestroy", &l.preference_destroy) &&
                     Find(library, "cublasLtMatmulPreferenceSetAttribute", &l.preference_set) &&
                     Find(library, "cublasLtMatmulAlgoGetHeuristic", &l.heuristic);
  if (!whole) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s lacks a function that cuBLASLt 13 has", kLibrary));
  }
  return l;
}

const absl::StatusOr<Library>& TheLibrary() {
  // Never destroyed: the library stays loaded.
  static const auto& library = *new absl::StatusOr<Library>(Load());
  return library;
}

absl::Status CublasStatus(cublasStatus_t code, const char* what) {
  if (code == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(
      absl::StrFormat("cuBLASLt: %s: status %d", what, static_cast<int>(code)));
}

#define MS_CUBLAS_RETURN_IF_ERROR(call)                              \
  do {                                                               \
    const absl::Status ms_cublas_status = CublasStatus(call, #call); \
    if (!ms_cublas_status.ok()) return ms_cublas_status;             \
  } while (false)

// cuBLASLt's view of a product: column-major, so y^T[n][m] = (w^T)^T x^T, and w[k][n] is w^T
// itself.
class Descriptors {
 public:
  explicit Descriptors(const Library& library) : l_(library) {}
  ~Descriptors() {
    if (desc != nullptr) l_.desc_destroy(desc);
    for (cublasLtMatrixLayout_t layout : {w, x, y}) {
      if (layout != nullptr) l_.layout_destroy(layout);
    }
  }
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;

  absl::Status Create(const BigProduct& p, int32_t m) {
    const auto n64 = static_cast<uint64_t>(p.n), k64 = static_cast<uint64_t>(p.k);
    const auto m64 = static_cast<uint64_t>(m);
    MS_CUBLAS_RETURN_IF_ERROR(l_.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const bool by_input = p.w_stride != 0;
    const cublasOperation_t operation = by_input ? CUBLAS_OP_N : CUBLAS_OP_T;
    MS_CUBLAS_RETURN_IF_ERROR(
        l_.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &operation, sizeof(operation)));
    MS_CUBLAS_RETURN_IF_ERROR(l_.layout_create(&w, CUDA_R_16BF, by_input ? n64 : k64,
                                               by_input ? k64 : n64, by_input ? p.w_stride : p.k));
    MS_CUBLAS_RETURN_IF_ERROR(l_.layout_create(&x, CUDA_R_16BF, k64, m64, p.k));
    MS_CUBLAS_RETURN_IF_ERROR(l_.layout_create(&y, CUDA_R_32F, n64, m64, p.y_stride));
    return absl::OkStatus();
  }

  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;

 private:
  const Library& l_;
};

int32_t BucketOf(int32_t m) {
  const int32_t granule = m <= 512 ? 64 : 512;
  return (m + granule - 1) / granule * granule;
}

class Products {
 public:
  absl::Status Run(const Library& l, const BigProduct& p, Stream stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (handle_ == nullptr) MS_CUBLAS_RETURN_IF_ERROR(l.create(&handle_));
    Descriptors d(l);
    if (absl::Status status = d.Create(p, p.m); !status.ok()) return status;
    const float one = 1.0f, beta = p.accumulate ? 1.0f : 0.0f;
    // What suits the bucket may refuse some of its row counts; those get one of their own.
    cublasStatus_t code = CUBLAS_STATUS_SUCCESS;
    for (const int32_t m : {BucketOf(p.m), p.m}) {
      const absl::StatusOr<cublasLtMatmulAlgo_t> algorithm = Algorithm(l, p, m);
      if (!algorithm.ok()) return algorithm.status();
      code = l.matmul(handle_, d.desc, &one, p.w, d.w, p.x, d.x, &beta, p.y, d.y, p.y, d.y,
                      &*algorithm, UsableWorkspace(p.workspace), static_cast<size_t>(kUsableBytes),
                      StreamOf(stream));
      if (code != CUBLAS_STATUS_NOT_SUPPORTED) break;
    }
    return CublasStatus(code, "product");
  }

 private:
  using Key = std::tuple<int32_t, int32_t, int64_t, int32_t, int64_t, bool>;

  // For products of `m` rows and otherwise as `p`.
  absl::StatusOr<cublasLtMatmulAlgo_t> Algorithm(const Library& l, const BigProduct& p, int32_t m) {
    const bool aligned = reinterpret_cast<uintptr_t>(p.y) % 16 == 0;
    const Key key(p.n, p.k, p.w_stride, m, p.y_stride, aligned);
    if (const auto found = algorithms_.find(key); found != algorithms_.end()) return found->second;
    Descriptors d(l);
    if (absl::Status status = d.Create(p, m); !status.ok()) return status;
    cublasLtMatmulPreference_t preference = nullptr;
    MS_CUBLAS_RETURN_IF_ERROR(l.preference_create(&preference));
    const auto destroy = [&l](cublasLtMatmulPreference_t it) { l.preference_destroy(it); };
    const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, decltype(destroy)>
        owner(preference, destroy);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, auto value) {
      return CublasStatus(l.preference_set(preference, name, &value, sizeof(value)), "preference");
    };
    const uint32_t y_bytes = aligned ? 16 : 4;
    for (const absl::Status& status :
         {set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kUsableBytes}),
          set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{16}),
          set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{16}),
          set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y_bytes),
          set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y_bytes)}) {
      if (!status.ok()) return status;
    }
    cublasLtMatmulHeuristicResult_t best = {};
    int found = 0;
    MS_CUBLAS_RETURN_IF_ERROR(
        l.heuristic(handle_, d.desc, d.w, d.x, d.y, d.y, preference, 1, &best, &found));
    if (found == 0) {
      return absl::InternalError(
          absl::StrFormat("cuBLASLt has no product for n %d, k %d, m %d", p.n, p.k, m));
    }
    algorithms_.emplace(key, best.algo);
    return best.algo;
  }

  std::mutex mutex_;
  cublasLtHandle_t handle_ = nullptr;               // Guarded by mutex_.
  std::map<Key, cublasLtMatmulAlgo_t> algorithms_;  // Guarded by mutex_; one a shape of the model.
};

}  // namespace

absl::Status CublasAvailable() { return TheLibrary().status(); }

absl::Status RunBigProduct(const BigProduct& product, Stream stream) {
  const absl::StatusOr<Library>& library = TheLibrary();
  if (!library.ok()) return library.status();
  static Products& products = *new Products;  // Never destroyed, as the library.
  return products.Run(*library, product, stream);
}

}  // namespace morphserve::kernels::cuda

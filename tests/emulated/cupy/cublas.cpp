// cuBLAS by its C interface: what is asked for goes to Python.
using Set = int (*)(void* handle, void* value);
using Mode = int (*)(void* handle, int mode);
using Product = int (*)(void* handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* a,
                        int a_type, int lda, long long stride_a, const void* b, int b_type, int ldb, long long stride_b,
                        const void* beta, void* c, int c_type, int ldc, long long stride_c, int count, int compute,
                        int algorithm);

extern "C" {
Set emulated_set_stream, emulated_get_mode;
Mode emulated_set_mode;
Product emulated_product;

int cublasSetStream_v2(void* handle, void* stream) { return emulated_set_stream(handle, stream); }
int cublasGetMathMode(void* handle, int* mode) { return emulated_get_mode(handle, mode); }
int cublasSetMathMode(void* handle, int mode) { return emulated_set_mode(handle, mode); }
int cublasGemmStridedBatchedEx(void* handle, int transa, int transb, int m, int n, int k, const void* alpha,
                               const void* a, int a_type, int lda, long long stride_a, const void* b, int b_type,
                               int ldb, long long stride_b, const void* beta, void* c, int c_type, int ldc,
                               long long stride_c, int count, int compute, int algorithm) {
    return emulated_product(handle, transa, transb, m, n, k, alpha, a, a_type, lda, stride_a, b, b_type, ldb, stride_b,
                            beta, c, c_type, ldc, stride_c, count, compute, algorithm);
}
const char* cublasGetStatusName(int status) {
    return status == 7 ? "CUBLAS_STATUS_INVALID_VALUE" : status == 1 ? "CUBLAS_STATUS_NOT_INITIALIZED" : "unknown";
}
}

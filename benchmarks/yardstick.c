/* Hand-tuned yardstick for all-pairs scoring: out[j][i] = sum_k w_k max(a_ik, b_jk) + offset_j, AVX2 and OpenMP.
 *
 * a is (n / 16, hidden, 16): strips of 16 targets, transposed, so that a vector holds eight targets, no sum is ever taken
 * across lanes and a strip stays in the first cache. b is (m, hidden), negated; m is a multiple of 4. Four sources by two vectors of targets stay in registers.
 * It is what the package's kernel is measured against, and no part of the package. */
#include <immintrin.h>

void all_pairs(const float *a, const float *b, const float *w, const float *offset, float *out, long n, long m,
               long hidden) {
#pragma omp parallel for schedule(static)
    for (long j = 0; j < m; j += 4) {
        const float *b0 = b + j * hidden, *b1 = b0 + hidden, *b2 = b1 + hidden, *b3 = b2 + hidden;
        for (long i = 0; i < n; i += 16) {
            const float *strip = a + i * hidden;
            __m256 s00 = _mm256_setzero_ps(), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00, s31 = s00;
            for (long k = 0; k < hidden; k++) {
                const __m256 x = _mm256_loadu_ps(strip + k * 16), y = _mm256_loadu_ps(strip + k * 16 + 8);
                const __m256 v = _mm256_broadcast_ss(w + k);
                __m256 c = _mm256_broadcast_ss(b0 + k);
                s00 = _mm256_fmadd_ps(v, _mm256_max_ps(x, c), s00);
                s01 = _mm256_fmadd_ps(v, _mm256_max_ps(y, c), s01);
                c = _mm256_broadcast_ss(b1 + k);
                s10 = _mm256_fmadd_ps(v, _mm256_max_ps(x, c), s10);
                s11 = _mm256_fmadd_ps(v, _mm256_max_ps(y, c), s11);
                c = _mm256_broadcast_ss(b2 + k);
                s20 = _mm256_fmadd_ps(v, _mm256_max_ps(x, c), s20);
                s21 = _mm256_fmadd_ps(v, _mm256_max_ps(y, c), s21);
                c = _mm256_broadcast_ss(b3 + k);
                s30 = _mm256_fmadd_ps(v, _mm256_max_ps(x, c), s30);
                s31 = _mm256_fmadd_ps(v, _mm256_max_ps(y, c), s31);
            }
            float *o = out + j * n + i;
            const __m256 sums[4][2] = {{s00, s01}, {s10, s11}, {s20, s21}, {s30, s31}};
            for (int r = 0; r < 4; r++) {
                const __m256 c = _mm256_broadcast_ss(offset + j + r);
                _mm256_storeu_ps(o + r * n, _mm256_add_ps(sums[r][0], c));
                _mm256_storeu_ps(o + r * n + 8, _mm256_add_ps(sums[r][1], c));
            }
        }
    }
}

"""Faults of csrc's vectors: conversions, exp, masks, reductions."""

CPP = "ctest blended_kl.generic"
AVX2 = "ctest blended_kl.avx2"
AVX512 = "ctest blended_kl.avx512"

FAULTS = {
    "csrc/cpu/convert.h": [
        ("non-temporal stores forget the end", "std::memcpy(out + i, in + i, bytes - i);", "", CPP),
        ("non-temporal stores miss 64-byte boundaries", "-reinterpret_cast<std::uintptr_t>(out) & 63", "0", AVX512),
        ("bfloat16 is cut off, not rounded", "(bits + 0x7fff + (bits >> 16 & 1)) >> 16", "bits >> 16", CPP),
        ("float16 is cut off, not rounded", "(wide + 0xfff + (wide >> 13 & 1)) >> 13", "wide >> 13", CPP),
        (
            "float16 is cut off by the vector conversion",
            "return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT",
            "return _mm256_cvtps_ph(x, _MM_FROUND_TO_ZERO",
            AVX2,
        ),
        (
            "bfloat16 ties are rounded up by the vector conversion",
            "_mm512_mask_add_epi32(half, odd, half, _mm512_set1_epi32(1))",
            "_mm512_mask_add_epi32(half, number, half, _mm512_set1_epi32(1))",
            AVX512,
        ),
        (
            "a NaN overflows to a number in the vector conversion",
            "_mm512_cmp_ps_mask(v.v, v.v, _CMP_ORD_Q)",
            "_mm512_cmp_ps_mask(v.v, v.v, _CMP_TRUE_UQ)",
            "ctest kept_rows.avx512",
        ),
        (
            "a signalling NaN is cut off to infinity",
            "_mm256_or_si256(sum, nan)",
            "sum",
            "ctest kept_rows.avx2",
        ),
        ("small float16 are not subnormal", "magnitude < 0x1p-14f", "magnitude < 0x1p-24f", CPP),
    ],
    "csrc/cpu/simd.h": [
        ("exp has a wrong coefficient", "0.166668580", "0.1666", AVX512),
        ("exp's table has a wrong entry", "0x3f75672a", "0x3f75682a", AVX512),
        ("exp's table is read one entry on", "_mm256_slli_epi32(bits, 20)", "_mm256_slli_epi32(bits, 21)", AVX2),
        (
            "exp of NaN is 0",
            "_mm512_cmp_ps_mask(x.v, least.v, _CMP_NLT_UQ)",
            "_mm512_cmp_ps_mask(x.v, least.v, _CMP_GE_OQ)",
            AVX512,
        ),
        (
            "exp is not 0 far below 0",
            "_mm256_cmp_ps(x.lo, least.lo, _CMP_NLT_UQ)",
            "_mm256_cmp_ps(x.lo, least.lo, _CMP_TRUE_UQ)",
            AVX2,
        ),
        ("denormals are not flushed", "_mm_setcsr(before_ | 0x8000)", "_mm_setcsr(before_)", CPP),
        ("denormals of others are flushed too", "~FlushDenormals() { _mm_setcsr(before_); }", "", CPP),
        ("a mask is a lane too long", "__mmask16((1u << n) - 1)", "__mmask16((2u << n) - 1)", AVX512),
        ("a mask of eight lanes is one too long", "_mm256_set1_epi32(n), _mm", "_mm256_set1_epi32(n + 1), _mm", AVX2),
        ("the upper half of a maximum is lost", "_mm256_max_ps(a.hi, b.hi)", "a.hi", AVX2),
    ],
}

def scaling_table(*, quick, n_threads):
    return []

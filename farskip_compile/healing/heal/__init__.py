# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a healed one, in steps that are kept on disk.

    settings   what is asked for; `recipes`: as options of `self_distill`
    material   the model, and the text in its three parts: to train on, to choose weights by, to judge by
    steps      the record of each step, in `FOLDER/steps`
    estimate   tokens, hours, memory and disk, from a few measured steps
    forecast   what rewiring brings, by `farskip_compile.measure.simulate`
    choice     the damage by row, and which rows to rewire
    judgement  original, rewired, folded and healed on text that nothing was chosen by
    page       all of it on one page; `numbers`: in words
    main       the steps in their order, for `farskip heal`

Start reading at `main`.
"""

"""The settings that each PEFT adapter type has: what may stand in an `adapter_config.json`.

Decides: which settings of an adapter this version of raypeft knows. PEFT drops a setting it does
not know with a warning, and the adapter then computes something else than it was trained to; so
an unknown setting is an error, before anything is loaded. Leaves to others: what a setting means
(`routing`), and whether the installed PEFT is old enough to lack one (`engines.hf_adapters`).

The table is that of PEFT 0.21.2; a test compares it with the installed PEFT.
"""

from collections.abc import Mapping

from raypeft.core.records import Json

_COMMON = (
    "auto_mapping base_model_name_or_path inference_mode peft_type peft_version revision task_type"
)
_TARGETED = "target_modules exclude_modules layers_to_transform layers_pattern modules_to_save"
_PROMPT = """
    num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers
    modules_to_save
"""
_LORA = f"""
    {_TARGETED}
    alora_invocation_tokens alpha_pattern arrow_config bias corda_config
    ensure_weight_tying eva_config fan_in_fan_out init_lora_weights kasa_config
    layer_replication loftq_config lora_alpha lora_bias lora_dropout lora_ga_config
    megatron_config megatron_core monteclora_config qalora_group_size r rank_pattern
    runtime_config target_parameters trainable_token_indices use_bdlora use_dora
    use_qalora use_rslora velora_config
"""

_TABLE = {
    "ADALORA": f"""
        {_LORA} beta1 beta2 deltaT init_r orth_reg_weight target_r tfinal tinit total_step
    """,
    "ADAMSS": """
        asa_importance_beta asa_schedule_exponent asa_target_subspaces asa_uncertainty_beta
        final_warmup init_warmup init_weights layers_pattern layers_to_transform
        mask_interval modules_to_save num_subspaces r random_seed subspace_rank
        svd_threshold target_modules use_asa use_dynamic_rank
    """,
    "ADAPTION_PROMPT": "adapter_layers adapter_len target_modules",
    "BEFT": "init_weights modules_to_save target_modules",
    "BOFT": f"""
        {_TARGETED} bias boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor
        fan_in_fan_out init_weights
    """,
    "C3A": """
        bias block_size block_size_pattern init_weights layers_pattern layers_to_transform
        modules_to_save target_modules
    """,
    "CARTRIDGE": f"{_PROMPT} num_frozen_tokens",
    "CPT": f"""
        {_PROMPT} cpt_mask cpt_token_ids cpt_tokens_type_mask opt_loss_decay_factor
        opt_projection_epsilon opt_projection_format_epsilon opt_weighted_loss_type
        tokenizer_name_or_path
    """,
    "DEFT": f"""
        {_TARGETED} alpha bias decomposition_method deft_dropout fan_in_fan_out init_scale
        init_weights para r
    """,
    "DELORA": f"""
        {_TARGETED} bias delora_lambda init_weights lambda_pattern module_dropout r
        rank_pattern
    """,
    "FOURIERFT": f"""
        {_TARGETED} bias fan_in_fan_out init_weights n_frequency n_frequency_pattern
        random_loc_seed scaling
    """,
    "FROD": """
        bias fan_in_fan_out frod_dropout init_weights layers_pattern layers_to_transform
        modules_to_save progressbar projection_prng_key regularization_alpha
        runtime_offload_base_weight save_projection sparse_rate target_modules
    """,
    "GLORA": "bias config_A_B config_C config_D_E init_weights modules_to_save r target_modules",
    "GRALORA": """
        alpha bias fan_in_fan_out gralora_dropout gralora_k hybrid_r init_weights
        layers_pattern layers_to_transform modules_to_save r target_modules
    """,
    "HIRA": f"{_TARGETED} fan_in_fan_out hira_dropout init_weights r rank_pattern",
    "HRA": f"{_TARGETED} apply_GS bias init_weights r",
    "IA3": """
        exclude_modules fan_in_fan_out feedforward_modules init_ia3_weights modules_to_save
        target_modules
    """,
    "LILY": f"{_TARGETED} init_weights num_B r scaling stride_A",
    "LN_TUNING": "exclude_modules modules_to_save target_modules",
    "LOHA": f"""
        {_TARGETED} alpha alpha_pattern init_weights module_dropout r rank_dropout
        rank_pattern use_effective_conv2d
    """,
    "LOKR": f"""
        {_TARGETED} alpha alpha_pattern decompose_both decompose_factor init_weights
        module_dropout r rank_dropout rank_dropout_scale rank_pattern use_effective_conv2d
    """,
    "LORA": _LORA,
    "MISS": f"{_TARGETED} bias init_weights mini_r miss_dropout r",
    "MULTITASK_PROMPT_TUNING": f"""
        {_PROMPT} num_ranks num_tasks prompt_tuning_init prompt_tuning_init_state_dict_path
        prompt_tuning_init_task prompt_tuning_init_text tokenizer_kwargs
        tokenizer_name_or_path
    """,
    "OFT": f"""
        {_TARGETED} bias block_share coft eps fan_in_fan_out init_weights module_dropout
        num_cayley_neumann_terms oft_block_size r use_cayley_neumann
    """,
    "OSF": """
        effective_rank init_weights modules_to_save rank_pattern target_modules
        target_svd_config
    """,
    "PEANUT": f"{_TARGETED} act_fn depth init_weights r scaling",
    "POLY": """
        exclude_modules init_weights modules_to_save n_skills n_splits n_tasks poly_type r
        target_modules
    """,
    "PREFIX_TUNING": f"{_PROMPT} encoder_hidden_size init_weights prefix_projection",
    "PROMPT_TUNING": f"""
        {_PROMPT} prompt_tuning_init prompt_tuning_init_text tokenizer_kwargs
        tokenizer_name_or_path
    """,
    "PSOFT": f"""
        {_TARGETED} ab_svd_init cayley_neumann_eps fan_in_fan_out init_weights
        num_cayley_neumann_terms psoft_alpha psoft_dropout psoft_mag_a psoft_mag_b
        psoft_orth psoft_svd psoft_svd_lowrank_niter r random_seed use_cayley_neumann
    """,
    "PVERA": """
        bias d_initial fan_in_fan_out generator_seed init_weights layers_pattern
        layers_to_transform modules_to_save projection_prng_key pvera_dropout r
        sample_at_inference save_projection target_modules
    """,
    "P_TUNING": f"""
        {_PROMPT} encoder_dropout encoder_hidden_size encoder_num_layers
        encoder_reparameterization_type
    """,
    "RANDLORA": """
        bias fan_in_fan_out init_weights layers_pattern layers_to_transform modules_to_save
        projection_prng_key r randlora_alpha randlora_dropout save_projection sparse
        target_modules very_sparse
    """,
    "ROAD": "group_size init_weights modules_to_save target_modules variant",
    "SHADOW": f"""
        {_TARGETED} auxiliary_loss_weight init_weights r shadow_alpha shadow_dropout
        shadow_hidden_size shadow_intermediate_size shadow_model shadow_num_attention_heads
        shadow_num_hidden_layers share_embeddings update_hidden_size
    """,
    "SHIRA": "fan_in_fan_out init_weights mask_type modules_to_save r random_seed target_modules",
    "SUPERTUNING": """
        init_weights lora_alpha lora_dropout modules_to_save r save_precomputed_indices
        select_top sparsity target_modules
    """,
    "TINYLORA": """
        bias fan_in_fan_out init_v_bound init_weights layers_pattern layers_to_transform
        modules_to_save projection_seed r save_projection target_modules tinylora_dropout u
        weight_tying
    """,
    "TRAINABLE_TOKENS": "init_weights target_modules token_indices",
    "UNILORA": """
        bias fan_in_fan_out init_theta_d_bound init_weights layers_pattern
        layers_to_transform modules_to_save proj_seed r save_indices target_modules
        theta_d_length unilora_dropout
    """,
    "VBLORA": f"""
        {_TARGETED} bias fan_in_fan_out init_logits_std init_vector_bank_bound num_vectors r
        save_only_topk_weights topk vblora_dropout vector_length
    """,
    "VERA": """
        bias d_initial fan_in_fan_out init_weights layers_pattern layers_to_transform
        modules_to_save projection_prng_key r save_projection target_modules vera_dropout
    """,
    "WAVEFT": f"""
        {_TARGETED} bias fan_in_fan_out init_weights n_frequency n_frequency_pattern
        proportional_parameters random_loc_seed scaling use_idwt wavelet_family
    """,
    "XLORA": """
        adapters enable_softmax enable_softmax_topk global_scaling_weight hidden_size
        layerwise_scalings scaling_pass_value softmax_temperature top_k_lora
        use_trainable_adapters xlora_depth xlora_dropout_p xlora_size
    """,
}

SETTINGS: Mapping[str, frozenset[str]] = {
    peft_type: frozenset(f"{_COMMON} {names}".split()) for peft_type, names in _TABLE.items()
}
"""Every adapter type of PEFT, with the settings it has."""


def is_unset(value: Json) -> bool:
    """Return whether a setting's value is the same as the setting's absence."""
    # Not `in (None, False)`: zero equals False, and is a value.
    return value is None or value is False or value in ([], {}, ())


def unknown_settings(config: Mapping[str, Json], known: frozenset[str]) -> dict[str, Json]:
    """Return the settings of a config that are set and not among the known ones."""
    return {key: value for key, value in config.items() if key not in known and not is_unset(value)}

"""From patches and metadata to token embeddings: spectral projection and coordinates.

Everything here is dense algebra on the token-major batch. Metadata that is unknown contributes exactly nothing: its
features are zero and its projections have no bias.
"""

import math

import torch
from torch import nn

from .configuration_a2mae import GEOGRAPHIC_BITS, A2MAEConfig
from .masking_a2mae import UNKNOWN_TIME
from .tokens_a2mae import gather_images, is_image_by_image

# Mean length of the Gregorian year, 365.2425 days.
MINUTES_PER_YEAR = 525_949.2
# Periods of the sine-cosine features, from the finest difference they have to tell apart to the whole range.
POSITION_PERIODS_METRES = (4.0, 40_000.0, 16)  # patches of 0.5 m pixels to the width of a large scene
SCALE_PERIODS_OCTAVES = (2.0, 32.0, 5)  # log2 of metres per patch
YEAR_PERIODS = (2.0, 64.0, 6)  # years since 2000
WAVELENGTH_PERIODS = (0.06, 4.0, 8)  # natural log of wavelength: red (665 nm) from red edge (705 nm) to 0.4–2.5 µm
WIDTH_PERIODS = (0.5, 8.0, 4)  # natural log of width in nanometres
IMAGE_PERIODS = (2.0, 64.0, 6)  # index of the image in its set
SEASON_HARMONICS = 4

POSITION_FEATURES = 2 * 2 * POSITION_PERIODS_METRES[2]
SPECTRAL_FEATURES = 2 * (WAVELENGTH_PERIODS[2] + WIDTH_PERIODS[2])
IMAGE_FEATURES = 2 * (SCALE_PERIODS_OCTAVES[2] + SEASON_HARMONICS + YEAR_PERIODS[2]) + SPECTRAL_FEATURES
IDENTITY_FEATURES = 2 * IMAGE_PERIODS[2]


def sine_cosine(values: torch.Tensor, periods: tuple[float, float, int]) -> torch.Tensor:
    """Return sine and cosine of values at geometrically spaced periods.

    Args:
        values: (…) float32, in the unit of the periods.
        periods: Shortest period, longest period, number of periods.

    Returns:
        (…, 2 × number of periods) float32.
    """
    shortest, longest, count = periods
    exponents = torch.arange(count, dtype=torch.float32, device=values.device) / (count - 1)
    frequencies = (2 * math.pi / shortest) * (shortest / longest) ** exponents
    # The cosine is a sine a quarter turn ahead: one pass over one tensor instead of three and a concatenation.
    phases = torch.arange(2, dtype=torch.float32, device=values.device).repeat_interleave(count) * (math.pi / 2)
    return torch.addcmul(phases, values[..., None], frequencies.repeat(2)).sin_()


def spectral_features(band_wavelengths: torch.Tensor, band_widths: torch.Tensor) -> torch.Tensor:
    """Describe bands by Fourier features of the logarithms of wavelength and width.

    Args:
        band_wavelengths: (B, T, C) nanometres, 0 where the band is absent.
        band_widths: (B, T, C) nanometres.

    Returns:
        (B, T, C, `SPECTRAL_FEATURES`) float32, zero where the band is absent.
    """
    present = band_wavelengths > 0
    log_wavelength = torch.where(present, band_wavelengths.float() / 1000, 1.0).log()
    log_width = torch.where(present & (band_widths > 0), band_widths.float(), 1.0).log()
    features = torch.cat(
        [sine_cosine(log_wavelength, WAVELENGTH_PERIODS), sine_cosine(log_width, WIDTH_PERIODS)], dim=-1
    )
    return features * present[..., None]


def image_features(
    band_wavelengths: torch.Tensor,
    band_widths: torch.Tensor,
    ground_resolutions: torch.Tensor,
    acquisition_times: torch.Tensor,
    patch_size: int,
) -> torch.Tensor:
    """Describe whole images: scale, season, absolute time, and the mean description of their bands.

    Args:
        band_wavelengths: (B, T, C) nanometres, 0 where the band is absent.
        band_widths: (B, T, C) nanometres.
        ground_resolutions: (B, T) metres per pixel, 0 where unknown.
        acquisition_times: (B, T) int64 minutes since 2000-01-01, the smallest int64 where unknown.
        patch_size: Pixels.

    Returns:
        (B, T, `IMAGE_FEATURES`) float32, zero where unknown.
    """
    scale_known = ground_resolutions > 0
    patch_metres = torch.where(scale_known, ground_resolutions.float() * patch_size, 1.0)
    scale = sine_cosine(patch_metres.log2(), SCALE_PERIODS_OCTAVES) * scale_known[..., None]

    time_known = acquisition_times != UNKNOWN_TIME
    years = torch.where(time_known, acquisition_times, 0).float() / MINUTES_PER_YEAR
    harmonics = torch.arange(1, SEASON_HARMONICS + 1, dtype=torch.float32, device=years.device)
    season = 2 * math.pi * (years - years.floor())[..., None] * harmonics
    time = torch.cat([season.sin(), season.cos(), sine_cosine(years, YEAR_PERIODS)], dim=-1) * time_known[..., None]

    num_bands = (band_wavelengths > 0).sum(-1, keepdim=True).clamp(min=1)
    spectrum = spectral_features(band_wavelengths, band_widths).sum(-2) / num_bands
    return torch.cat([scale, time, spectrum], dim=-1)


def geographic_bits(geographic_codes: torch.Tensor, level: int) -> torch.Tensor:
    """Unpack GeoSOT codes into ±1, most significant bit first.

    Args:
        geographic_codes: (B, 8) int64 codes of 32 bits, −1 where unknown.
        level: Leading bits of each code to read; the others give 0.

    Returns:
        (B, 256) float32 of −1, +1, and 0 where unknown or beyond the level.
    """
    shifts = torch.arange(31, -1, -1, device=geographic_codes.device)
    bits = (geographic_codes[..., None] >> shifts) & 1
    readable = (geographic_codes[..., None] >= 0) & (shifts > 31 - level)
    return ((2 * bits - 1) * readable).flatten(1).float()


class FanInLinear(nn.Linear):
    """A linear layer whose weights start with variance 1 / in_features, so that its output has the scale of its input.

    A class of its own, because for code outside the library transformers initialises only modules that hold parameters:
    what their parents would set is skipped without a word.
    """


class A2MAESpectralNetwork(nn.Module):
    """Mixing weights of a band from its wavelength and width: (B, T, C) nanometres → (B, T, C, K), 0 where absent."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        self.fc1 = FanInLinear(SPECTRAL_FEATURES, config.spectral_hidden_size)
        self.activation = nn.GELU()
        self.fc2 = FanInLinear(config.spectral_hidden_size, config.spectral_basis_size)

    def forward(self, band_wavelengths: torch.Tensor, band_widths: torch.Tensor) -> torch.Tensor:
        """Return the weights; see the class."""
        features = spectral_features(band_wavelengths, band_widths).to(self.fc1.weight.dtype)
        weights = self.fc2(self.activation(self.fc1(features)))
        return weights * (band_wavelengths > 0)[..., None]


class A2MAEPatchEmbedding(nn.Module):
    """Embed patches of any bands: mix them into virtual bands, then project linearly.

    Under `spectral_projection="identity"` the bands are taken as they come.
    """

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.mixes_bands = config.spectral_projection == "basis"
        num_virtual = config.spectral_basis_size if self.mixes_bands else config.num_channels
        if self.mixes_bands:
            self.spectral_network = A2MAESpectralNetwork(config)
        self.projection = FanInLinear(num_virtual * config.patch_size**2, config.hidden_size)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the (B, L, hidden_size) embeddings of a batch.

        Raises:
            ValueError: The bands do not fit the projection.
        """
        pixels = batch["pixel_values"].to(self.projection.weight.dtype)
        if not self.mixes_bands:
            if pixels.shape[2] != self.num_channels:
                raise ValueError(
                    f"pixel_values has {pixels.shape[2]} bands, this checkpoint takes {self.num_channels} as they are"
                    " (spectral_projection='identity'); select those bands in the processor."
                )
            return self.projection(pixels.flatten(2))
        wavelengths = batch["band_wavelengths"]
        weights = self.spectral_network(wavelengths, batch["band_widths"])
        # The mean over the bands that are there keeps the scale, however many they are.
        if "pixel_mask" in batch:
            virtual = gather_images(weights, batch["image_ids"]).transpose(2, 3) @ pixels
            num_present = batch["pixel_mask"].sum(dim=2, keepdim=True).clamp(min=1).to(pixels.dtype)
            return self.projection((virtual / num_present).flatten(2))
        weights = weights / (wavelengths > 0).sum(-1)[..., None, None].clamp(min=1)
        of_kernels = weights_of_kernels(weights, batch)
        if of_kernels is not None:
            return self.project_with_mixed_kernels(pixels, of_kernels)
        virtual = gather_images(weights, batch["image_ids"]).transpose(2, 3) @ pixels
        return self.projection(virtual.flatten(2))

    def project_with_mixed_kernels(self, pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Embed (B, L, C, P·P) pixels with a kernel for their own bands, mixed with the weights (kernels, C, K)."""
        num_kernels, num_bands, _ = weights.shape
        width, area = self.projection.out_features, pixels.shape[-1]
        # One product for all kernels, laid out as the next one takes them: a batch of products would copy, going back,
        # the gradient of every kernel.
        stored = self.projection.weight.unflatten(1, (-1, area)).permute(1, 2, 0).flatten(1)
        kernels = (weights.flatten(0, 1) @ stored).view(num_kernels, num_bands * area, width)
        embedded = torch.baddbmm(self.projection.bias, pixels.reshape(num_kernels, -1, num_bands * area), kernels)
        return embedded.view(len(pixels), -1, width)


class A2MAEPatchPrediction(nn.Module):
    """Predict patches in the bands of their image: the mirror of `A2MAEPatchEmbedding`.

    Args:
        config: The configuration.
        num_features: Numbers to predict of each band besides the pixels of its patch.
    """

    def __init__(self, config: A2MAEConfig, num_features: int = 0) -> None:
        super().__init__()
        self.reads_out_bands = config.spectral_projection == "basis"
        self.num_virtual = config.spectral_basis_size if self.reads_out_bands else config.num_channels
        if self.reads_out_bands:
            self.spectral_network = A2MAESpectralNetwork(config)
        outputs = config.patch_size**2 + num_features
        self.projection = nn.Linear(config.decoder_hidden_size, self.num_virtual * outputs)

    def forward(self, hidden_states: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return (B, M, C, P·P + features) values for the (B, M, width) states of the tokens of a batch."""
        if not self.reads_out_bands:
            return self.projection(hidden_states).unflatten(-1, (self.num_virtual, -1))
        weights = self.spectral_network(batch["band_wavelengths"], batch["band_widths"])
        of_kernels = weights_of_kernels(weights, batch)
        if of_kernels is not None:
            return self.predict_with_mixed_kernels(hidden_states, of_kernels)
        virtual = self.projection(hidden_states).unflatten(-1, (self.num_virtual, -1))
        return gather_images(weights, batch["image_ids"]) @ virtual

    def predict_with_mixed_kernels(self, hidden_states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Predict with a kernel for the bands of the image, mixed with the weights (kernels, C, K)."""
        num_kernels, num_bands, num_virtual = weights.shape
        num_sets, num_tokens, width = hidden_states.shape
        kernels = (weights @ self.projection.weight.view(num_virtual, -1)).view(num_kernels, -1, width)
        biases = (weights @ self.projection.bias.view(num_virtual, -1)).view(num_kernels, 1, -1)
        states = hidden_states.reshape(num_kernels, -1, width)
        predicted = torch.baddbmm(biases, states, kernels.transpose(1, 2))
        return predicted.view(num_sets, num_tokens, num_bands, -1)


def weights_of_kernels(weights: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """Choose the order of the two sums: mix the bands of every token, or the kernels of the virtual bands beforehand.

    Both are linear, so the result is the same. Kernels are mixed once if all images have the same bands, and once per
    image if the tokens lie image by image and are many: for N tokens that takes C · (K + N) products, the bands K · N.
    The choice depends on values, so a compiled graph, where shapes alone may decide, mixes bands.

    Args:
        weights: (B, T, C, K) mixing weights.
        batch: The batch.

    Returns:
        (1, C, K) or (B · T, C, K) weights of the kernels to mix, or None to mix the bands.
    """
    if torch.compiler.is_compiling():
        return None
    bands = torch.stack([batch["band_wavelengths"], batch["band_widths"]])
    if bool((bands == bands[:, :1, :1]).all()):
        return weights[0, :1]
    num_images, num_bands, num_virtual = weights.shape[1:]
    per_image = batch["image_ids"].shape[1] // num_images
    pays = num_bands * (num_virtual + per_image) < num_virtual * per_image
    return weights.flatten(0, 1) if pays and is_image_by_image(batch["image_ids"], num_images) else None


class A2MAECoordinates(nn.Module):
    """Sum of learned projections of ground position, image description, place and, in the decoder, image identity."""

    def __init__(self, config: A2MAEConfig, width: int, tells_images_apart: bool = False) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.geographic_level = config.geographic_level
        self.position = nn.Linear(POSITION_FEATURES, width, bias=False)
        self.image = nn.Linear(IMAGE_FEATURES, width, bias=False)
        self.place = nn.Linear(GEOGRAPHIC_BITS, width, bias=False) if config.geographic_level else None
        self.identity = nn.Linear(IDENTITY_FEATURES, width, bias=False) if tells_images_apart else None

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the (B, L, width) coordinates of the tokens of a batch."""
        dtype = self.position.weight.dtype
        of_images = self.image(
            image_features(
                batch["band_wavelengths"],
                batch["band_widths"],
                batch["ground_resolutions"],
                batch["acquisition_times"],
                self.patch_size,
            ).to(dtype)
        )
        if self.place is not None and "geographic_codes" in batch:
            # Scaled to length one: two hundred bits would otherwise drown the patch at the start of training.
            bits = geographic_bits(batch["geographic_codes"], self.geographic_level)
            bits = bits * (8 * self.geographic_level) ** -0.5
            of_images = of_images + self.place(bits.to(dtype))[:, None]
        if self.identity is not None:
            image_index = torch.arange(of_images.shape[1], dtype=torch.float32, device=of_images.device)
            of_images = of_images + self.identity(sine_cosine(image_index, IMAGE_PERIODS).to(dtype))
        coordinates = gather_images(of_images, batch["image_ids"])
        if "patch_positions" in batch:
            position = sine_cosine(batch["patch_positions"].float(), POSITION_PERIODS_METRES).flatten(2)
            coordinates = self.position(position.to(dtype)).add_(coordinates)
        return coordinates


class ReleasedCoordinates(nn.Module):
    """The fixed coordinates of the released network, for its checkpoints.

    The encoder adds `[place bits | P(p; r₁) | P(p; r₂) | …]` to every token of every image, the decoder `P(p; r)` of
    the token's own image, where `P(p; r)` is the sine-cosine of (r · column, r · row) and r the ground resolution in
    metres.
    """

    def __init__(self, config: A2MAEConfig, width: int, of_own_image: bool = False) -> None:
        super().__init__()
        self.width = width
        self.of_own_image = of_own_image
        self.num_images = config.released_num_images

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the (B, L, width) coordinates of the tokens of a batch.

        Raises:
            ValueError: The batch lacks the grid, or the number of images is not that of the checkpoint.
        """
        if "grid_positions" not in batch:
            raise ValueError(
                "grid_shapes is missing from the batch; coordinate_layout='released' needs the patch grid."
            )
        resolutions = batch["ground_resolutions"].float()
        row, column = batch["grid_positions"].float().unbind(-1)
        if self.of_own_image:
            resolution = gather_images(resolutions, batch["image_ids"])
            coordinates = self.sine_cosine_of_grid(row * resolution, column * resolution, self.width)
        else:
            if resolutions.shape[1] != self.num_images:
                raise ValueError(
                    f"The batch has {resolutions.shape[1]} images per set, but this checkpoint takes exactly"
                    f" {self.num_images} (coordinate_layout='released')."
                )
            row, column = row[:, :, None] * resolutions[:, None], column[:, :, None] * resolutions[:, None]
            positions = self.sine_cosine_of_grid(row, column, (self.width - GEOGRAPHIC_BITS) // self.num_images)
            codes = batch.get("geographic_codes", torch.full_like(batch["anchor_ids"], -1)[:, None].expand(-1, 8))
            bits = geographic_bits(codes, 32).clamp(min=0)
            coordinates = torch.cat([bits[:, None].expand(-1, row.shape[1], -1), positions.flatten(2)], dim=-1)
        return coordinates.to(batch["pixel_values"].dtype)

    @staticmethod
    def sine_cosine_of_grid(row: torch.Tensor, column: torch.Tensor, width: int) -> torch.Tensor:
        """Return `[sin(column), cos(column), sin(row), cos(row)]`, width / 4 frequencies 10000^(−4i/width) each."""
        exponents = torch.arange(width // 4, dtype=torch.float32, device=row.device) / (width // 4)
        frequencies = 10_000**-exponents
        x, y = column[..., None] * frequencies, row[..., None] * frequencies
        return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=-1)
